variable "cluster_name" {
  description = "Name of the cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes of the nodes."
  type        = string
}

variable "system" {
  description = <<-TEXT
    The machines that are always there, on demand: CoreDNS, the autoscaler, KubeRay's operator, Dagster. min_nodes is 1 or
    more: with 1, a lost machine interrupts all of these for minutes, and all are in subnet_id; a change from 1 to more, or
    back, replaces the machines.
  TEXT
  type = object({
    instance_type = string
    min_nodes     = number
    max_nodes     = number
    subnet_ids    = list(string)
  })

  validation {
    condition     = var.system.min_nodes >= 1 && var.system.max_nodes >= var.system.min_nodes
    error_message = "system: min_nodes is 1 or more, and max_nodes not less."
  }
}

variable "pools" {
  description = <<-TEXT
    Machines for jobs, by the name of the pool: from 0 to max_nodes (of each kind), started when a pod asks for one.
    instance_types: more than one only if they are alike in CPUs, memory and GPUs. spot: at the spot price, and with
    on_demand_fallback on demand where there are none. gpus: of one machine; gpu: their name. efa_interfaces: as many as the
    machine has. disk_gb: images, /tmp and what Ray spills.
  TEXT
  type = map(object({
    instance_types     = list(string)
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
    condition     = alltrue([for name in keys(var.pools) : can(regex("^[a-z]([a-z0-9-]{0,20}[a-z0-9])?$", name)) && name != "system"])
    error_message = "pools: names are small letters, digits and -, and not system."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : length(pool.instance_types) > 0 && pool.max_nodes >= 1 && pool.disk_gb >= 50])
    error_message = "pools: each has an instance type, max_nodes of 1 or more, and disk_gb of 50 or more."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : !pool.placement_group || var.placement_group != null])
    error_message = "pools: placement_group requires that of the network module (placement_group = true)."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.efa_interfaces == 0 || length(var.efa_security_group_ids) > 0])
    error_message = "pools: efa_interfaces requires the security group of the network module (efa = true)."
  }
}

variable "subnet_id" {
  description = "Subnet of the pools, and of a system of one machine: one zone, as traffic between zones costs 0.01 dollars a GB in each direction."
  type        = string
}

variable "placement_group" {
  description = "Name of the placement group of pools that ask for it."
  type        = string
  default     = null
}

variable "efa_security_group_ids" {
  description = "Security groups of machines with EFA: that of the network module, and that of the cluster."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of machines and disks, to which a provider's default tags do not reach."
  type        = map(string)
}
