variable "cluster_name" {
  description = "Name of the cluster: a prefix of the roles' names."
  type        = string
}

variable "cluster_arn" {
  description = "ARN of the cluster."
  type        = string
}

variable "bucket_arn" {
  description = "ARN of the bucket."
  type        = string
}

variable "runs_prefix" {
  description = "Key prefix below which runs write: root is s3://BUCKET/PREFIX."
  type        = string
  default     = "runs"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.runs_prefix))
    error_message = "runs_prefix: such as runs, without / at its ends and without wildcards."
  }
}

variable "inputs_prefix" {
  description = "Key prefix of dumps, books and documents, which runs only read."
  type        = string
  default     = "inputs"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.inputs_prefix)) && var.inputs_prefix != var.runs_prefix
    error_message = "inputs_prefix: such as inputs, without / at its ends and without wildcards, and not runs_prefix."
  }
}

variable "service_accounts" {
  description = "Service accounts that Pod Identity gives a role of this module, by the workload: jobs, workflow, autoscaler."
  type = map(object({
    namespace = string
    name      = string
  }))

  validation {
    condition     = length(setsubtract(keys(var.service_accounts), ["jobs", "workflow", "autoscaler"])) == 0
    error_message = "service_accounts: jobs, workflow and autoscaler are known."
  }
}
