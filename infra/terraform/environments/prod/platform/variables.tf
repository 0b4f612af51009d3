variable "account_id" {
  description = "AWS account of this environment; any other is refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id: twelve digits (aws sts get-caller-identity)."
  }
}

variable "administrators" {
  description = "IAM principals (ARNs) that administer the cluster, by a name; yours among them."
  type        = map(string)
}

variable "submitters" {
  description = "IAM principals (ARNs) that may submit jobs and see them, by a name."
  type        = map(string)
  default     = {}
}

variable "allowed_cidrs" {
  description = "Addresses that may reach the API server, such as [\"203.0.113.7/32\"]. Empty: from the VPC alone."
  type        = set(string)
}

variable "emails" {
  description = "Who gets the alarms of budget and GPU-hours."
  type        = set(string)
}

variable "image_tag" {
  description = "Tag of the image that jobs use."
  type        = string
}
