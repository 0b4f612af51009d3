output "cluster_name" {
  description = "Name of the cluster, known once it has the add-ons."
  value       = var.cluster_name
  depends_on  = [aws_eks_addon.this]
}

output "names" {
  description = "Names of the add-ons."
  value       = keys(aws_eks_addon.this)
}

output "configurations" {
  description = "Configuration of each add-on, as JSON."
  value       = { for name, addon in aws_eks_addon.this : name => addon.configuration_values }
}
