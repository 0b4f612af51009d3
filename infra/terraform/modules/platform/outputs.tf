output "cluster_file" {
  description = "Content of configs/clusters/eks.yaml."
  value       = module.cluster_file.yaml
}

output "cluster_name" {
  description = "Name of the cluster, for `aws eks update-kubeconfig`."
  value       = module.cluster.name
}

output "image_repository" {
  description = "Where the image of Cloze is pushed."
  value       = module.registry.repository_urls["cloze"]
}

output "service_accounts" {
  description = "Service accounts to be created, by workload: Pod Identity gives them their roles."
  value       = local.service_accounts
}

output "autoscaler_priorities" {
  description = "The cluster autoscaler's priorities, for its ConfigMap cluster-autoscaler-priority-expander."
  value       = module.nodes.autoscaler_priorities
}
