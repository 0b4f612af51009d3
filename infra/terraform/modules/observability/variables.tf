variable "name" {
  description = "Name of the environment."
  type        = string
}

variable "emails" {
  description = "Who is told. Each address gets a mail from AWS, and must confirm."
  type        = set(string)

  validation {
    condition     = length(var.emails) > 0 && alltrue([for email in var.emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "emails: one address at least: an alarm that nobody gets is none."
  }
}

variable "monthly_dollars" {
  description = "Budget of the account a month: a mail at 50 and 80 %, at 100 %, and when the forecast exceeds it. It stops nothing."
  type        = number

  validation {
    condition     = var.monthly_dollars > 0
    error_message = "monthly_dollars: more than 0."
  }
}

variable "gpu_groups" {
  description = "Auto Scaling groups of machines with GPUs, and the GPUs of one machine."
  type = map(object({
    autoscaling_group = string
    gpus              = number
  }))

  validation {
    condition     = length(var.gpu_groups) <= 9
    error_message = "gpu_groups: 9 at most, as an alarm has 10 expressions."
  }
}

variable "gpu_hours_a_day" {
  description = "GPU-hours of 24 hours above which an alarm is sent."
  type        = number

  validation {
    condition     = var.gpu_hours_a_day > 0
    error_message = "gpu_hours_a_day: more than 0."
  }
}
