# The cluster's file of `cloze submit --cluster`, see docs/reference/cluster.md.
#
# A node type is not `spot: true`: its pods would select spot machines alone, and wait where AWS has none. They select the
# pool, in which the autoscaler prefers spot.

locals {
  node_types = [
    for kind in var.node_types : merge(
      { for key, value in kind : key => value if value != null && key != "pool" },
      { name = kind.pool },
      var.placement[kind.pool],
    )
  ]

  content = {
    name = var.name
    kubernetes = {
      context         = var.context
      namespace       = var.namespace
      service_account = var.service_account
      image           = var.image
      capacity_label  = "cloze/capacity-type"
      head            = merge({ cpus = 4, memory_gb = 16 }, var.placement[var.head_pool])
    }
    node_types  = local.node_types
    overrides   = ["root=${var.root}"]
    env_vars    = { AWS_REGION = var.region }
    retries     = 3
    ttl_seconds = 604800
  }
}
