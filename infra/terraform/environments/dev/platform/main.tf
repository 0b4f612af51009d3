terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }

  backend "s3" {
    key          = "dev/platform.tfstate"
    encrypt      = true
    use_lockfile = true # S3's own lock
  }
}

locals {
  name   = "cloze-dev"
  region = "us-east-1"
  tags   = { project = "cloze", environment = "dev", managed-by = "terraform" }
}

provider "aws" {
  region              = local.region
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = local.tags
  }
}

module "platform" {
  source = "../../../modules/platform"

  name               = local.name
  region             = local.region
  zones              = ["us-east-1a", "us-east-1b"]
  bucket             = "cloze-dev-${var.account_id}"
  kubernetes_version = "1.35"
  administrators     = var.administrators
  submitters         = var.submitters
  allowed_cidrs      = var.allowed_cidrs
  image_tag          = var.image_tag
  emails             = var.emails
  tags               = local.tags

  # The schedule looks for new dumps, and images come from several registries.
  nat_gateway         = true
  interface_endpoints = [] # by NAT: 7 dollars a month less for each

  system = { instance_type = "m7i.large", min_nodes = 1, max_nodes = 2 }

  pools = {
    head = { instance_types = ["m7i.2xlarge"], cpus = 4, memory_gb = 16, max_nodes = 2, disk_gb = 100 }
    cpu  = { instance_types = ["c7i.8xlarge"], cpus = 30, memory_gb = 56, max_nodes = 2, spot = true }
    gpu  = { instance_types = ["g6.12xlarge"], cpus = 44, memory_gb = 180, gpus = 4, gpu = "L4", max_nodes = 1, spot = true }
  }

  monthly_dollars = 500
  gpu_hours_a_day = 48
}
