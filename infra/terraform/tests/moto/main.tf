# For tests alone: what a moto server can create, on that server. It answers neither access entries, add-ons and Pod
# Identity associations nor budgets, and makes no Auto Scaling groups: those are in `terraform test` alone.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }

  backend "s3" {
    key          = "test/moto.tfstate"
    use_lockfile = true
  }
}

variable "endpoint" {
  description = "Address of the moto server."
  type        = string
}

provider "aws" {
  region                      = "us-east-1"
  access_key                  = "testing"
  secret_key                  = "testing"
  s3_use_path_style           = true
  max_retries                 = 2 # what the server does not know, it answers with 500
  skip_metadata_api_check     = true
  skip_credentials_validation = true

  default_tags {
    tags = { project = "cloze-moto" }
  }

  endpoints {
    autoscaling = var.endpoint
    ec2         = var.endpoint
    ecr         = var.endpoint
    eks         = var.endpoint
    iam         = var.endpoint
    kms         = var.endpoint
    logs        = var.endpoint
    s3          = var.endpoint
    sts         = var.endpoint
  }
}

locals {
  name = "cloze-moto"
}

module "storage" {
  source = "../../modules/storage"

  bucket = "cloze-moto-123456789012"
}

module "network" {
  source = "../../modules/network"

  name        = local.name
  zones       = ["us-east-1a", "us-east-1b"]
  nat_gateway = true
  efa         = true
}

module "registry" {
  source = "../../modules/registry"

  name = local.name
}

module "cluster" {
  source = "../../modules/cluster"

  name               = local.name
  kubernetes_version = "1.35"
  subnet_ids         = module.network.private_subnet_ids
  allowed_cidrs      = ["203.0.113.7/32"]
}

module "nodes" {
  source = "../../modules/nodes"

  cluster_name       = module.cluster.name
  kubernetes_version = "1.35"
  system             = { instance_type = "m7i.large", min_nodes = 1, max_nodes = 2, subnet_ids = module.network.private_subnet_ids }
  pools              = {}
  subnet_id          = module.network.private_subnet_ids[0]
  tags               = { project = local.name }
}

module "identity" {
  source = "../../modules/identity"

  cluster_name     = module.cluster.name
  cluster_arn      = "arn:aws:eks:us-east-1:123456789012:cluster/${local.name}"
  bucket_arn       = module.storage.arn
  service_accounts = {}
}

output "bucket" {
  description = "The bucket."
  value       = module.storage.bucket
}

output "cluster" {
  description = "The cluster."
  value       = module.cluster.name
}
