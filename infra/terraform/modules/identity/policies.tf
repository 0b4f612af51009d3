# What each workload may do, action by action. tests/infra/terraform/test_least_privilege.py records what a run calls.

locals {
  runs   = "${var.bucket_arn}/${var.runs_prefix}/*"
  inputs = "${var.bucket_arn}/${var.inputs_prefix}/*"

  # Uploads in parts need PutObject to begin, write and complete; an upload that fails is aborted. Leases and promotion
  # are conditional writes, which are PutObject, too. A lookup (HEAD) is GetObject.
  runs_policy = {
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "List"
        Effect   = "Allow"
        Action   = ["s3:ListBucket"]
        Resource = [var.bucket_arn]
        Condition = {
          StringLike = { "s3:prefix" = [for prefix in [var.runs_prefix, var.inputs_prefix] : "${prefix}/*"] }
        }
      },
      {
        Sid      = "Runs"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [local.runs]
      },
      {
        Sid      = "Inputs"
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = [local.inputs]
      },
    ]
  }

  autoscaler_policy = {
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "Describe"
        Effect = "Allow"
        Action = [
          "autoscaling:DescribeAutoScalingGroups",
          "autoscaling:DescribeAutoScalingInstances",
          "autoscaling:DescribeLaunchConfigurations",
          "autoscaling:DescribeScalingActivities",
          "autoscaling:DescribeTags",
          "ec2:DescribeImages",
          "ec2:DescribeInstanceTypes",
          "ec2:DescribeLaunchTemplateVersions",
          "ec2:GetInstanceTypesFromInstanceRequirements",
        ]
        Resource = ["*"] # these actions know no resources
      },
      {
        Sid      = "NodeGroups"
        Effect   = "Allow"
        Action   = ["eks:DescribeNodegroup"]
        Resource = ["${replace(var.cluster_arn, ":cluster/", ":nodegroup/")}/*/*"]
      },
      {
        Sid      = "Scale"
        Effect   = "Allow"
        Action   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
        Resource = ["*"]
        Condition = {
          StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.cluster_name}" = "owned" }
        }
      },
    ]
  }
}
