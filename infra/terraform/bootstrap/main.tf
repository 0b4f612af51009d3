# The bucket for the state of one account's environments. Its own state is local: apply once, by hand, and keep no copy
# (`terraform import module.state.aws_s3_bucket.this NAME` finds the bucket again).

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }
}

variable "account_id" {
  description = "AWS account; any other is refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id: twelve digits (aws sts get-caller-identity)."
  }
}

variable "region" {
  description = "AWS region of the state."
  type        = string
  default     = "us-east-1"
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = { project = "cloze", environment = "state", managed-by = "terraform" }
  }
}

module "state" {
  source = "../modules/storage"

  bucket          = "cloze-state-${var.account_id}"
  noncurrent_days = 365 # earlier states, from which a lost one is restored
}

output "backend" {
  description = "The file for `terraform init -backend-config=FILE` of each environment."
  value       = <<-TEXT
    bucket = "${module.state.bucket}"
    region = "${var.region}"
  TEXT
}
