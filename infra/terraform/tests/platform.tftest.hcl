# What the modules are told of each other.
mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/mock" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:mock" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:mock" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = { arn = "arn:aws:eks:us-east-1:123456789012:cluster/cloze-test" }
  }
  mock_resource "aws_eks_node_group" {
    defaults = { resources = [{ autoscaling_groups = [{ name = "eks-mock" }], remote_access_security_group_id = "" }] }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "123456789012.dkr.ecr.us-east-1.amazonaws.com/cloze-test/cloze" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_eks_addon_version" {
    defaults = { version = "v1.2.3-eksbuild.1" }
  }
  mock_data "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::cloze-test-123456789012" }
  }
}

variables {
  name                = "cloze-test"
  region              = "us-east-1"
  zones               = ["us-east-1a", "us-east-1b"]
  bucket              = "cloze-test-123456789012"
  kubernetes_version  = "1.35"
  allowed_cidrs       = ["203.0.113.7/32"]
  administrators      = { me = "arn:aws:iam::123456789012:role/Admin" }
  nat_gateway         = true
  interface_endpoints = ["ecr.api", "ecr.dkr"]
  system              = { instance_type = "m7i.large", min_nodes = 1, max_nodes = 2 }
  pools = {
    head = { instance_types = ["m7i.2xlarge"], cpus = 4, memory_gb = 16, max_nodes = 2 }
    cpu  = { instance_types = ["c7i.8xlarge", "c6i.8xlarge"], cpus = 30, memory_gb = 56, max_nodes = 2, spot = true }
    gpu  = { instance_types = ["g6.12xlarge"], cpus = 44, memory_gb = 180, gpus = 4, gpu = "L4", max_nodes = 1, spot = true }
  }
  image_tag       = "0.1.0"
  emails          = ["team@example.org"]
  monthly_dollars = 500
  gpu_hours_a_day = 48
  tags            = { project = "cloze" }
}

run "platform" {
  module {
    source = "./modules/platform"
  }

  assert {
    condition     = jsondecode(module.node_addons.configurations["vpc-cni"]).enableNetworkPolicy == "true"
    error_message = "EKS enforces no network policy."
  }
  assert {
    condition     = toset(concat(module.node_addons.names, module.cluster_addons.names)) == toset(["vpc-cni", "kube-proxy", "eks-pod-identity-agent", "coredns", "eks-node-monitoring-agent", "aws-ebs-csi-driver"])
    error_message = "An add-on is missing without which nodes, roles, volumes or repair do not work."
  }
  assert {
    condition     = jsondecode(module.identity.policies["jobs"]).Statement[1].Resource == ["arn:aws:s3:::cloze-test-123456789012/runs/*"] && yamldecode(output.cluster_file).overrides == ["root=s3://cloze-test-123456789012/runs"]
    error_message = "Jobs write elsewhere than where they may."
  }
  assert {
    condition     = output.service_accounts["jobs"] == { namespace = yamldecode(output.cluster_file).kubernetes.namespace, name = yamldecode(output.cluster_file).kubernetes.service_account }
    error_message = "Jobs do not run as the service account that has the role."
  }
  assert {
    condition     = yamldecode(output.cluster_file).kubernetes.head.node_selector == { "cloze/pool" = "head" }
    error_message = "The Ray head may run on spot machines."
  }
  assert {
    condition     = { for kind in yamldecode(output.cluster_file).node_types : kind.name => try(kind.instance_type, "any") } == { cpu = "any", gpu = "g6.12xlarge" }
    error_message = "Pods of a pool with several instance types select one of them, or the price of the only one is unknown."
  }
  assert {
    condition     = yamldecode(output.cluster_file).kubernetes.image == "123456789012.dkr.ecr.us-east-1.amazonaws.com/cloze-test/cloze:0.1.0"
    error_message = "Jobs use another image than that of the registry."
  }
  assert {
    condition     = module.network.placement_group == null && module.network.efa_security_group_id == null
    error_message = "EFA exists though no pool has it."
  }
}

run "platform_refuses_a_head_on_spot" {
  command = plan
  module {
    source = "./modules/platform"
  }
  variables {
    pools = { head = { instance_types = ["m7i.2xlarge"], cpus = 4, memory_gb = 16, max_nodes = 2, spot = true } }
  }
  expect_failures = [var.pools]
}

run "platform_refuses_to_be_without_administrators" {
  command = plan
  module {
    source = "./modules/platform"
  }
  variables {
    administrators = {}
  }
  expect_failures = [var.administrators]
}
