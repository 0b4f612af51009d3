# All of an environment but its data: the modules, and what they know of each other.

locals {
  namespace       = "cloze"
  gpu_pools       = [for name, pool in var.pools : name if pool.gpus > 0]
  efa             = anytrue([for pool in values(var.pools) : pool.efa_interfaces > 0])
  placement_group = anytrue([for pool in values(var.pools) : pool.placement_group])

  service_accounts = {
    jobs       = { namespace = local.namespace, name = "cloze" }
    workflow   = { namespace = local.namespace, name = "dagster" }
    autoscaler = { namespace = "kube-system", name = "cluster-autoscaler" }
  }
}

data "aws_s3_bucket" "data" {
  bucket = var.bucket
}

module "network" {
  source = "../network"

  name                = var.name
  zones               = var.zones
  nat_gateway         = var.nat_gateway
  interface_endpoints = var.interface_endpoints
  efa                 = local.efa
  placement_group     = local.placement_group
}

module "registry" {
  source = "../registry"

  name = var.name
}

module "cluster" {
  source = "../cluster"

  name               = var.name
  kubernetes_version = var.kubernetes_version
  subnet_ids         = module.network.private_subnet_ids
  allowed_cidrs      = var.allowed_cidrs
  administrators     = var.administrators
  submitters         = var.submitters
}

module "identity" {
  source = "../identity"

  cluster_name     = module.cluster.name
  cluster_arn      = module.cluster.arn
  bucket_arn       = data.aws_s3_bucket.data.arn
  service_accounts = local.service_accounts
}

# Without these no node becomes ready. What comes after other modules takes the cluster's name from them: depends_on of a
# module would make each plan of an upgrade replace the node role's policies, as data sources are then read only later.
module "node_addons" {
  source = "../addons"

  cluster_name       = module.cluster.name
  kubernetes_version = module.cluster.version
  addons = {
    kube-proxy             = {}
    eks-pod-identity-agent = {}
    vpc-cni = {
      configuration   = jsonencode({ enableNetworkPolicy = "true" }) # EKS enforces no network policy otherwise
      service_account = module.identity.service_accounts["vpc-cni"]
      role_arn        = module.identity.role_arns["vpc-cni"]
    }
  }
}

module "nodes" {
  source = "../nodes"

  cluster_name           = module.node_addons.cluster_name # after its add-ons
  kubernetes_version     = module.cluster.version
  system                 = merge(var.system, { subnet_ids = module.network.private_subnet_ids })
  pools                  = var.pools
  subnet_id              = module.network.private_subnet_ids[0]
  placement_group        = module.network.placement_group
  efa_security_group_ids = local.efa ? [module.network.efa_security_group_id, module.cluster.security_group_id] : []
  tags                   = var.tags
}

# These run on nodes.
module "cluster_addons" {
  source = "../addons"

  cluster_name       = module.nodes.cluster_name # after its nodes
  kubernetes_version = module.cluster.version
  addons = {
    coredns                   = {}
    eks-node-monitoring-agent = {} # finds failed GPUs, which EKS then replaces
    aws-ebs-csi-driver = {
      service_account = module.identity.service_accounts["ebs-csi"]
      role_arn        = module.identity.role_arns["ebs-csi"]
    }
  }
}

module "observability" {
  source = "../observability"

  name            = var.name
  emails          = var.emails
  monthly_dollars = var.monthly_dollars
  gpu_groups      = module.nodes.gpu_groups
  gpu_hours_a_day = var.gpu_hours_a_day
}

module "cluster_file" {
  source = "../cluster_file"

  name            = var.name
  region          = var.region
  context         = var.name
  namespace       = local.namespace
  service_account = local.service_accounts.jobs.name
  image           = "${module.registry.repository_urls["cloze"]}:${var.image_tag}"
  root            = "s3://${var.bucket}/runs"
  head_pool       = "head"
  placement       = module.nodes.placement
  node_types = [
    for name, pool in var.pools : {
      pool          = name
      cpus          = pool.cpus
      memory_gb     = pool.memory_gb
      gpus          = pool.gpus
      gpu           = pool.gpu
      instance_type = length(pool.instance_types) == 1 ? pool.instance_types[0] : null # pods would select it
      max_nodes     = pool.max_nodes
    } if name != "head"
  ]
}
