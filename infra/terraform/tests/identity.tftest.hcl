mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  cluster_name = "cloze-test"
  cluster_arn  = "arn:aws:eks:us-east-1:123456789012:cluster/cloze-test"
  bucket_arn   = "arn:aws:s3:::cloze-test"
  service_accounts = {
    jobs       = { namespace = "cloze", name = "cloze" }
    workflow   = { namespace = "cloze", name = "dagster" }
    autoscaler = { namespace = "kube-system", name = "cluster-autoscaler" }
  }
}

run "identity" {
  module {
    source = "./modules/identity"
  }

  assert {
    condition = alltrue([for role in aws_iam_role.workload : toset(jsondecode(role.assume_role_policy).Statement[0].Action) == toset(["sts:AssumeRole", "sts:TagSession"]) &&
    jsondecode(role.assume_role_policy).Statement[0].Principal == { Service = "pods.eks.amazonaws.com" }])
    error_message = "A role is not Pod Identity's alone."
  }
  assert {
    condition = alltrue([for workload, account in var.service_accounts : jsondecode(aws_iam_role.workload[workload].assume_role_policy).Statement[0].Condition.StringEquals == {
      "aws:RequestTag/eks-cluster-arn"            = var.cluster_arn
      "aws:RequestTag/kubernetes-namespace"       = account.namespace
      "aws:RequestTag/kubernetes-service-account" = account.name
    }])
    error_message = "A role can be had by a pod of another service account, namespace or cluster."
  }
  assert {
    condition = alltrue([for workload, account in var.service_accounts :
    aws_eks_pod_identity_association.workload[workload].service_account == account.name && aws_eks_pod_identity_association.workload[workload].namespace == account.namespace])
    error_message = "A service account does not get its role."
  }
  assert {
    condition     = alltrue(flatten([for policy in output.policies : [for statement in jsondecode(policy).Statement : [for action in statement.Action : !strcontains(action, "*")]]]))
    error_message = "A policy has a wildcard action."
  }
  assert {
    condition     = alltrue(flatten([for policy in output.policies : [for statement in jsondecode(policy).Statement : statement.Effect == "Allow"]]))
    error_message = "A policy denies, which hides what it allows."
  }
  assert {
    condition = { for statement in jsondecode(output.policies["jobs"]).Statement : statement.Sid => toset(statement.Action) } == {
      List   = toset(["s3:ListBucket"])
      Runs   = toset(["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"])
      Inputs = toset(["s3:GetObject"])
    }
    error_message = "Jobs may do other than list, read, write, delete and abort."
  }
  assert {
    condition = { for statement in jsondecode(output.policies["jobs"]).Statement : statement.Sid => statement.Resource } == {
      List   = ["arn:aws:s3:::cloze-test"]
      Runs   = ["arn:aws:s3:::cloze-test/runs/*"]
      Inputs = ["arn:aws:s3:::cloze-test/inputs/*"]
    }
    error_message = "Jobs reach other objects than runs and inputs."
  }
  assert {
    condition     = toset(jsondecode(output.policies["jobs"]).Statement[0].Condition.StringLike["s3:prefix"]) == toset(["runs/*", "inputs/*"])
    error_message = "Jobs may list more than runs and inputs."
  }
  assert {
    condition     = output.policies["workflow"] == output.policies["jobs"]
    error_message = "The workflow may do other than its jobs."
  }
  assert {
    condition = toset([for action in flatten([for statement in jsondecode(output.policies["autoscaler"]).Statement : statement.Action]) : action
    if length(regexall(":(Describe|Get)", action)) == 0]) == toset(["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"])
    error_message = "The autoscaler changes other than the size of groups."
  }
  assert {
    condition     = one([for statement in jsondecode(output.policies["autoscaler"]).Statement : statement.Resource if statement.Sid == "NodeGroups"]) == ["arn:aws:eks:us-east-1:123456789012:nodegroup/cloze-test/*/*"]
    error_message = "The autoscaler sees node groups of other clusters."
  }
  assert {
    condition = { for addon in ["vpc-cni", "ebs-csi"] : addon => jsondecode(aws_iam_role.workload[addon].assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/kubernetes-service-account"] } == {
      vpc-cni = "aws-node"
      ebs-csi = "ebs-csi-controller-sa"
    }
    error_message = "An add-on's role is for another service account than its own."
  }
  assert {
    condition     = alltrue([for role in aws_iam_role.workload : length(jsondecode(role.assume_role_policy).Statement) == 1])
    error_message = "A role is not Pod Identity's alone: its trust has a second statement."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(output.policies["autoscaler"]).Statement : startswith(statement.Sid, "Describe") || statement.Sid == "NodeGroups" || try(statement.Condition.StringEquals["aws:ResourceTag/k8s.io/cluster-autoscaler/cloze-test"], "") == "owned"])
    error_message = "The autoscaler changes groups of other clusters."
  }
  assert {
    condition     = { for addon, attachment in aws_iam_role_policy_attachment.addon : addon => attachment.policy_arn } == { vpc-cni = "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy", ebs-csi = "arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy" }
    error_message = "An add-on has another policy than its own."
  }
}

run "identity_refuses_wildcards" {
  command = plan
  module {
    source = "./modules/identity"
  }
  variables {
    runs_prefix = "*"
  }
  expect_failures = [var.runs_prefix]
}
