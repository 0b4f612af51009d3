variable "cluster_name" {
  description = "Name of the cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes, which decides the version of each add-on."
  type        = string
}

variable "addons" {
  description = "EKS add-ons by name: their configuration, and the role of their service account if they call AWS."
  type = map(object({
    configuration   = optional(string) # JSON
    service_account = optional(string)
    role_arn        = optional(string)
  }))
}
