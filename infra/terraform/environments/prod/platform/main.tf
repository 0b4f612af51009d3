terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }

  backend "s3" {
    key          = "prod/platform.tfstate"
    encrypt      = true
    use_lockfile = true # S3's own lock
  }
}

locals {
  name   = "cloze-prod"
  region = "us-east-1"
  tags   = { project = "cloze", environment = "prod", managed-by = "terraform" }
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
  bucket             = "cloze-prod-${var.account_id}"
  kubernetes_version = "1.35"
  administrators     = var.administrators
  submitters         = var.submitters
  allowed_cidrs      = var.allowed_cidrs
  image_tag          = var.image_tag
  emails             = var.emails
  tags               = local.tags

  # The schedule looks for new dumps. Images are pulled without NAT; their layers come from S3.
  nat_gateway         = true
  interface_endpoints = ["ecr.api", "ecr.dkr", "eks-auth", "sts"]

  system = { instance_type = "m7i.large", min_nodes = 2, max_nodes = 3 }

  pools = {
    head = { instance_types = ["m7i.2xlarge"], cpus = 4, memory_gb = 16, max_nodes = 4, disk_gb = 100 }
    cpu  = { instance_types = ["c7i.8xlarge"], cpus = 30, memory_gb = 56, max_nodes = 8, spot = true }
    gpu  = { instance_types = ["p5.48xlarge"], cpus = 184, memory_gb = 1900, gpus = 8, gpu = "H100", max_nodes = 1, spot = true, disk_gb = 500 }
  }

  monthly_dollars = 3000
  gpu_hours_a_day = 100
}
