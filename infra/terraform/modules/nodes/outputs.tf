output "cluster_name" {
  description = "Name of the cluster, known once it has the node groups."
  value       = var.cluster_name
  depends_on  = [aws_eks_node_group.system, aws_eks_node_group.pool]
}

output "node_role_arn" {
  description = "Role of the machines."
  value       = aws_iam_role.node.arn
}

output "gpu_groups" {
  description = "Auto Scaling groups of machines with GPUs, by the name of the node group, and the GPUs of one machine."
  value = {
    for name, group in local.groups : name => {
      autoscaling_group = aws_eks_node_group.pool[name].resources[0].autoscaling_groups[0].name
      gpus              = var.pools[group.pool].gpus
    } if var.pools[group.pool].gpus > 0
  }
}

output "placement" {
  description = "By pool: the labels that its pods select, and the taint that they tolerate."
  value = {
    for name, pool in var.pools : name => {
      node_selector = { "cloze/pool" = name }
      tolerations   = pool.gpus > 0 ? [{ key = "nvidia.com/gpu", value = "present" }] : [{ key = "cloze/pool", value = name }]
    }
  }
}

output "autoscaler_priorities" {
  description = "The cluster autoscaler's priorities (expander priority): spot before on demand, by patterns of node group names."
  value       = { "20" = [".*-spot-.*"], "10" = [".*"] }
}
