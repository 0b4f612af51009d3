output "yaml" {
  description = "Content of configs/clusters/eks.yaml."
  value       = yamlencode(local.content)
}
