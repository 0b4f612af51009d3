variable "name" {
  description = "Name of the environment, such as cloze-dev: a prefix of all names."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: 2 to 31 small letters, digits and -, the first a letter."
  }
}

variable "cidr" {
  description = "Addresses of the VPC. Each pod takes one of a private subnet, which has a sixteenth of them."
  type        = string
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && try(tonumber(split("/", var.cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.cidr)[1]), 99) <= 20
    error_message = "cidr: an IPv4 range from /16 to /20, such as 10.64.0.0/16."
  }
}

variable "zones" {
  description = "Two availability zones of one region. EKS requires two; the machines of jobs are in the first."
  type        = list(string)

  validation {
    condition     = length(var.zones) == 2 && length(distinct(var.zones)) == 2 && length(distinct([for zone in var.zones : substr(zone, 0, length(zone) - 1)])) == 1
    error_message = "zones: two different zones of one region, such as [\"us-east-1a\", \"us-east-1b\"]."
  }
}

variable "nat_gateway" {
  description = <<-TEXT
    One NAT gateway, in the first zone: the way to registries, package indexes and Wikipedia's dumps. About 0.045 dollars an
    hour (33 a month) and 0.045 a GB; S3 goes through the gateway endpoint, which is free. false: no way to the internet.
  TEXT
  type        = bool
}

variable "interface_endpoints" {
  description = <<-TEXT
    AWS services that are reached inside the VPC. Each costs about 0.01 dollars an hour and 0.01 a GB, in the first zone
    alone. Without a NAT gateway all that nodes and pods call are needed.
  TEXT
  type        = set(string)
  default     = ["ecr.api", "ecr.dkr"]

  validation {
    condition     = var.nat_gateway || length(setsubtract(["autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "sts"], var.interface_endpoints)) == 0
    error_message = "interface_endpoints: without nat_gateway nodes need autoscaling, ec2, ecr.api, ecr.dkr, eks, eks-auth and sts."
  }
}

variable "placement_group" {
  description = "A cluster placement group: machines of a GPU pool stand close together, and start together or not at all."
  type        = bool
  default     = false
}

variable "efa" {
  description = "A security group for Elastic Fabric Adapter, which lets its members exchange any traffic."
  type        = bool
  default     = false
}

variable "log_retention_days" {
  description = "Days for which rejected connections are logged."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365], var.log_retention_days)
    error_message = "log_retention_days: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180 or 365, as CloudWatch has them."
  }
}
