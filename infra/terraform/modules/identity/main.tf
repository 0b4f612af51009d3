# A role for each workload, which EKS Pod Identity gives to one service account: no keys, and nothing that the node may do.

data "aws_partition" "current" {}

locals {
  # Pod Identity's agent sends the pod's namespace and service account as session tags.
  accounts = merge(var.service_accounts, local.addon_accounts)

  addon_accounts = {
    vpc-cni = { namespace = "kube-system", name = "aws-node" }
    ebs-csi = { namespace = "kube-system", name = "ebs-csi-controller-sa" }
  }

  policies = { for workload, policy in local.own_policies : workload => policy if contains(keys(var.service_accounts), workload) }

  own_policies = {
    jobs       = local.runs_policy
    workflow   = local.runs_policy
    autoscaler = local.autoscaler_policy
  }

  managed_policies = {
    vpc-cni = "AmazonEKS_CNI_Policy"
    ebs-csi = "service-role/AmazonEBSCSIDriverPolicy"
  }
}

resource "aws_iam_role" "workload" {
  for_each = local.accounts

  name = "${var.cluster_name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:RequestTag/eks-cluster-arn"            = var.cluster_arn
          "aws:RequestTag/kubernetes-namespace"       = each.value.namespace
          "aws:RequestTag/kubernetes-service-account" = each.value.name
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "workload" {
  for_each = local.policies

  name   = each.key
  role   = aws_iam_role.workload[each.key].name
  policy = jsonencode(each.value)
}

resource "aws_iam_role_policy_attachment" "addon" {
  for_each = local.managed_policies

  role       = aws_iam_role.workload[each.key].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/${each.value}"
}
