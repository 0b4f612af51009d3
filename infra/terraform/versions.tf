# No infrastructure: the folder from which `terraform test` finds the modules. Environments are in environments/.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }
}
