mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/mock" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name               = "cloze-test"
  kubernetes_version = "1.35"
  subnet_ids         = ["subnet-a", "subnet-b"]
  allowed_cidrs      = ["203.0.113.7/32"]
  administrators     = { me = "arn:aws:iam::123456789012:role/Admin" }
  submitters         = { data = "arn:aws:iam::123456789012:role/Data" }
}

run "cluster" {
  module {
    source = "./modules/cluster"
  }

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API"
    error_message = "Somebody can enter by the ConfigMap aws-auth."
  }
  assert {
    condition     = aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions == false
    error_message = "Whoever creates the cluster administers it for ever."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "Nodes reach the API server over the internet."
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.7/32"])
    error_message = "The API server is open to more than the allow-list."
  }
  assert {
    condition     = contains(aws_eks_cluster.this.encryption_config[0].resources, "secrets") && aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == aws_kms_key.secrets.arn
    error_message = "Secrets are not encrypted with a key of our own."
  }
  assert {
    condition     = jsondecode(aws_iam_role_policy.secrets.policy).Statement[0].Resource == [aws_kms_key.secrets.arn]
    error_message = "The cluster's role uses other keys than that of its secrets."
  }
  assert {
    condition     = aws_kms_key.secrets.enable_key_rotation && aws_kms_key.secrets.deletion_window_in_days == 7
    error_message = "The key does not rotate, or lingers for longer than it must."
  }
  assert {
    condition     = [for statement in jsondecode(aws_kms_key.secrets.policy).Statement : statement.Principal] == [{ AWS = "arn:aws:iam::123456789012:root" }]
    error_message = "Others than the account's IAM decide on the key."
  }
  assert {
    condition     = length(aws_eks_cluster.this.enabled_cluster_log_types) == 5 && contains(aws_eks_cluster.this.enabled_cluster_log_types, "audit") && aws_cloudwatch_log_group.cluster.name == "/aws/eks/cloze-test/cluster"
    error_message = "Who did what is not logged, or logged where no retention is set."
  }
  assert {
    condition     = aws_cloudwatch_log_group.cluster.retention_in_days == 90
    error_message = "Logs are kept for ever."
  }
  assert {
    condition     = aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD"
    error_message = "An old version costs six times as much an hour."
  }
  assert {
    condition     = aws_eks_access_policy_association.administrators["me"].policy_arn == "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
    error_message = "Administrators cannot administer."
  }
  assert {
    condition     = keys(aws_eks_access_policy_association.administrators) == ["me"] && aws_eks_access_entry.submitters["data"].kubernetes_groups == toset(["cloze:submitters"])
    error_message = "Submitters have more than their group."
  }
}

run "cluster_for_the_vpc_alone" {
  command = plan
  module {
    source = "./modules/cluster"
  }
  variables {
    allowed_cidrs = []
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access == false
    error_message = "Without an allow-list the API server is public."
  }
}

run "cluster_refuses_the_internet_in_halves" {
  command = plan
  module {
    source = "./modules/cluster"
  }
  variables {
    allowed_cidrs = ["0.0.0.0/1", "128.0.0.0/1"]
  }
  expect_failures = [var.allowed_cidrs]
}

run "cluster_refuses_the_internet_by_ipv6" {
  command = plan
  module {
    source = "./modules/cluster"
  }
  variables {
    allowed_cidrs = ["::/0"]
  }
  expect_failures = [var.allowed_cidrs]
}

run "cluster_refuses_the_whole_internet" {
  command = plan
  module {
    source = "./modules/cluster"
  }
  variables {
    allowed_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.allowed_cidrs]
}
