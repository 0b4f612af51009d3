# The data of dev, in a state of its own: what ends or replaces the platform cannot touch it.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }

  backend "s3" {
    key          = "dev/data.tfstate"
    encrypt      = true
    use_lockfile = true # S3's own lock
  }
}

variable "account_id" {
  description = "AWS account of this environment; any other is refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id: twelve digits (aws sts get-caller-identity)."
  }
}

provider "aws" {
  region              = "us-east-1"
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = { project = "cloze", environment = "dev", managed-by = "terraform" }
  }
}

module "storage" {
  source = "../../../modules/storage"

  bucket          = "cloze-dev-${var.account_id}"
  noncurrent_days = 7
}

output "bucket" {
  description = "Name of the bucket."
  value       = module.storage.bucket
}
