variable "name" {
  description = "Name of the environment."
  type        = string
}

variable "region" {
  description = "AWS region of the cluster and the bucket."
  type        = string
}

variable "context" {
  description = "Context of the kubeconfig, as `aws eks update-kubeconfig --alias` names it."
  type        = string
}

variable "namespace" {
  description = "Namespace of the jobs."
  type        = string
}

variable "service_account" {
  description = "Service account of the jobs' pods."
  type        = string
}

variable "image" {
  description = "Image of the jobs: NAME:TAG, or NAME@sha256:DIGEST."
  type        = string
}

variable "root" {
  description = "Where runs write: s3://BUCKET/PREFIX."
  type        = string
}

variable "head_pool" {
  description = "Pool of the Ray head, which is on demand."
  type        = string
}

variable "node_types" {
  description = "The pools of the workers: what a pod gets of a machine, and how many machines a job may have."
  type = list(object({
    pool          = string
    cpus          = number
    memory_gb     = number
    gpus          = optional(number, 0)
    gpu           = optional(string)
    instance_type = optional(string)
    max_nodes     = number
  }))
}

variable "placement" {
  description = "By pool: labels that pods select and taints that they tolerate (output of module nodes)."
  type = map(object({
    node_selector = map(string)
    tolerations   = list(object({ key = string, value = string }))
  }))
}
