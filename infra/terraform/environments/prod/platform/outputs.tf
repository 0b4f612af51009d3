output "cluster_file" {
  description = "Content of configs/clusters/eks.yaml: terraform output -raw cluster_file."
  value       = module.platform.cluster_file
}

output "cluster_name" {
  description = "Name of the cluster: aws eks update-kubeconfig --name NAME --alias NAME."
  value       = module.platform.cluster_name
}

output "region" {
  description = "AWS region."
  value       = local.region
}

output "image_repository" {
  description = "Where the image is pushed."
  value       = module.platform.image_repository
}

output "service_accounts" {
  description = "Service accounts to be created in the cluster."
  value       = module.platform.service_accounts
}

output "autoscaler_priorities" {
  description = "For the cluster autoscaler's ConfigMap of priorities."
  value       = module.platform.autoscaler_priorities
}
