variable "bucket" {
  description = "Name of the bucket, unique in all of AWS, such as cloze-dev-123456789012."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 63 small letters, digits and -; a dot would break TLS."
  }
}

variable "noncurrent_days" {
  description = "Days for which deleted and replaced objects can be restored. They cost as much as live ones."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && var.noncurrent_days <= 365
    error_message = "noncurrent_days: 1 to 365."
  }
}

variable "upload_days" {
  description = "Days after which the parts of a multipart upload that nobody completed are deleted; longer than any run."
  type        = number
  default     = 7

  validation {
    condition     = var.upload_days >= 2 && var.upload_days <= 30
    error_message = "upload_days: 2 to 30; an upload of a run that is at work must not be deleted."
  }
}
