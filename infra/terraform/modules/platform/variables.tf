variable "name" {
  description = "Name of the environment, such as cloze-dev."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "zones" {
  description = "Two zones of the region; the machines of jobs are in the first: choose it by where the GPUs are."
  type        = list(string)

  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "zones: of the region, such as us-east-1a of us-east-1."
  }
}

variable "bucket" {
  description = "Name of the bucket, which the data folder of this environment has created."
  type        = string
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes."
  type        = string
}

variable "allowed_cidrs" {
  description = "Addresses outside the VPC that may reach the API server."
  type        = set(string)
}

variable "administrators" {
  description = "IAM principals (ARNs) that administer the cluster, by a name."
  type        = map(string)

  validation {
    condition     = length(var.administrators) > 0
    error_message = "administrators: one at least, or nobody can use the cluster."
  }
}

variable "submitters" {
  description = "IAM principals (ARNs) that may submit jobs, by a name."
  type        = map(string)
  default     = {}
}

variable "nat_gateway" {
  description = "A NAT gateway, about 33 dollars a month and 0.045 a GB."
  type        = bool
}

variable "interface_endpoints" {
  description = "AWS services that are reached inside the VPC, about 7 dollars a month each."
  type        = set(string)
}

variable "system" {
  description = "The machines that are always there: see module nodes."
  type = object({
    instance_type = string
    min_nodes     = number
    max_nodes     = number
  })
}

variable "pools" {
  description = <<-TEXT
    Pools of machines for jobs: see module nodes. cpus and memory_gb (10^9 bytes): what one pod gets of a machine, less than
    it has, as Kubernetes and its daemons need some. gpu: its name in infra/estimate/gpus.yaml, such as L4. workers: whether
    jobs have workers there; the pool named head has the Ray heads.
  TEXT
  type = map(object({
    instance_types     = list(string)
    cpus               = number
    memory_gb          = number
    gpus               = optional(number, 0)
    gpu                = optional(string)
    max_nodes          = number
    spot               = optional(bool, false)
    on_demand_fallback = optional(bool, true)
    disk_gb            = optional(number, 200)
    efa_interfaces     = optional(number, 0)
    placement_group    = optional(bool, false)
  }))

  validation {
    condition     = contains(keys(var.pools), "head") && !try(var.pools["head"].spot, true)
    error_message = "pools: one is named head, and is not spot: a head that is lost ends the attempt."
  }
}

variable "image_tag" {
  description = "Tag of the image cloze that jobs use."
  type        = string
}

variable "emails" {
  description = "Who gets the alarms."
  type        = set(string)
}

variable "monthly_dollars" {
  description = "Budget of the account a month."
  type        = number
}

variable "gpu_hours_a_day" {
  description = "GPU-hours of 24 hours above which an alarm is sent."
  type        = number
}

variable "tags" {
  description = "Tags of machines and disks; the same as the provider's default tags."
  type        = map(string)
}
