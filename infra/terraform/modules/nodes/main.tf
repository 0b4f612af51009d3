# Managed node groups of Bottlerocket: a system group, and for each pool one group on spot and one on demand, or one of
# them. The cluster autoscaler starts and ends their machines; EKS drains those that AWS takes back.

locals {
  kinds = { spot = "SPOT", on-demand = "ON_DEMAND" }

  groups = merge([
    for name, pool in var.pools : {
      for kind in concat(pool.spot ? ["spot"] : [], !pool.spot || pool.on_demand_fallback ? ["on-demand"] : []) :
      "${name}-${kind}" => {
        pool = name
        kind = kind
        labels = merge(
          { "cloze/pool" = name, "cloze/capacity-type" = kind },
          # Until a machine's GPUs appear, the autoscaler takes it by this label for one that starts, not for one without.
          pool.gpus > 0 ? { "k8s.amazonaws.com/accelerator" = coalesce(pool.gpu, "nvidia") } : {},
        )
        taint = pool.gpus > 0 ? { key = "nvidia.com/gpu", value = "present" } : { key = "cloze/pool", value = name }
      }
    }
  ]...)
}

resource "aws_iam_role" "node" {
  name = "${var.cluster_name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

data "aws_partition" "current" {}

# What a node itself needs: to join, and to pull images. Pods have roles of their own.
resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.key}"
}

# Its only machine comes again in the zone of the one before: Dagster's volume is there.
resource "aws_eks_node_group" "system" {
  cluster_name         = var.cluster_name
  version              = var.kubernetes_version
  node_group_name      = "system"
  node_role_arn        = aws_iam_role.node.arn
  subnet_ids           = var.system.min_nodes == 1 ? [var.subnet_id] : var.system.subnet_ids
  ami_type             = "BOTTLEROCKET_x86_64"
  capacity_type        = "ON_DEMAND"
  instance_types       = [var.system.instance_type]
  force_update_version = false # an update waits for disruption budgets
  labels               = { "cloze/pool" = "system", "cloze/capacity-type" = "on-demand" }

  scaling_config {
    min_size     = var.system.min_nodes
    desired_size = var.system.min_nodes
    max_size     = var.system.max_nodes
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  launch_template {
    id      = aws_launch_template.system.id
    version = aws_launch_template.system.latest_version
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.node]
}

resource "aws_eks_node_group" "pool" {
  for_each = local.groups

  cluster_name         = var.cluster_name
  version              = var.kubernetes_version
  node_group_name      = each.key
  node_role_arn        = aws_iam_role.node.arn
  subnet_ids           = [var.subnet_id]
  ami_type             = var.pools[each.value.pool].gpus > 0 ? "BOTTLEROCKET_x86_64_NVIDIA" : "BOTTLEROCKET_x86_64"
  capacity_type        = local.kinds[each.value.kind]
  instance_types       = var.pools[each.value.pool].instance_types
  force_update_version = false
  labels               = each.value.labels

  taint {
    key    = each.value.taint.key
    value  = each.value.taint.value
    effect = "NO_SCHEDULE"
  }

  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = var.pools[each.value.pool].max_nodes
  }

  update_config {
    max_unavailable = 1
  }

  # A machine whose GPU fails, or that is not ready for long, is replaced.
  node_repair_config {
    enabled = true
  }

  launch_template {
    id      = aws_launch_template.pool[each.value.pool].id
    version = aws_launch_template.pool[each.value.pool].latest_version
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.node]
}
