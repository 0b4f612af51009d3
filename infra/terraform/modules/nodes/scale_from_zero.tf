# What the cluster autoscaler must know of a machine that does not exist yet: its labels, its taint, its GPUs. EKS tags
# the Auto Scaling groups for the autoscaler's discovery, but does not pass these on to them.

locals {
  template = "k8s.io/cluster-autoscaler/node-template"

  template_tags = merge([
    for name, group in local.groups : merge(
      { for key, value in group.labels : "${name}/label/${key}" => { group = name, key = "label/${key}", value = value } },
      { "${name}/taint" = { group = name, key = "taint/${group.taint.key}", value = "${group.taint.value}:NoSchedule" } },
      var.pools[group.pool].gpus == 0 ? {} : {
        "${name}/gpus" = { group = name, key = "resources/nvidia.com/gpu", value = tostring(var.pools[group.pool].gpus) }
      },
    )
  ]...)
}

resource "aws_autoscaling_group_tag" "template" {
  for_each = local.template_tags

  autoscaling_group_name = aws_eks_node_group.pool[each.value.group].resources[0].autoscaling_groups[0].name

  tag {
    key                 = "${local.template}/${each.value.key}"
    value               = each.value.value
    propagate_at_launch = false
  }
}
