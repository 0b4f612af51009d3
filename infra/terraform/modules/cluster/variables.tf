variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes. Raise it by one at a time: control plane, add-ons, nodes follow in one apply."
  type        = string

  validation {
    condition     = can(regex("^1\\.(3[3-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: such as 1.35."
  }
}

variable "subnet_ids" {
  description = "Private subnets in two zones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids: EKS requires two, in different zones."
  }
}

variable "allowed_cidrs" {
  description = "Addresses outside the VPC that may reach the API server, such as [\"203.0.113.7/32\"]. Empty: the VPC alone."
  type        = set(string)

  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]), 0) >= 16])
    error_message = "allowed_cidrs: ranges from /16 to /32: an API server for everybody is none of this module's."
  }
}

variable "administrators" {
  description = "IAM principals (ARNs) that administer the cluster, by a name. Nobody else does, the creator included."
  type        = map(string)
  default     = {}
}

variable "submitters" {
  description = "IAM principals (ARNs), by a name, that belong to the Kubernetes group cloze:submitters."
  type        = map(string)
  default     = {}
}

variable "log_retention_days" {
  description = "Days for which the control plane's logs are kept."
  type        = number
  default     = 90
}
