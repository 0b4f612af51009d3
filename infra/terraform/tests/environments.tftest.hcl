# The two environments as they are applied, on a mocked provider.
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
    defaults = { arn = "arn:aws:eks:us-east-1:123456789012:cluster/mock" }
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
  account_id     = "123456789012"
  administrators = { me = "arn:aws:iam::123456789012:role/Admin" }
  submitters     = { data = "arn:aws:iam::123456789012:role/Data" }
  allowed_cidrs  = ["203.0.113.7/32"]
  emails         = ["team@example.org"]
  image_tag      = "0.1.0"
}

run "dev" {
  module {
    source = "./environments/dev/platform"
  }

  assert {
    condition     = yamldecode(output.cluster_file).overrides == ["root=s3://cloze-dev-123456789012/runs"] && output.cluster_name == "cloze-dev"
    error_message = "dev uses what is not dev's."
  }
}

run "prod" {
  module {
    source = "./environments/prod/platform"
  }

  assert {
    condition     = yamldecode(output.cluster_file).overrides == ["root=s3://cloze-prod-123456789012/runs"] && output.cluster_name == "cloze-prod"
    error_message = "prod uses what is not prod's."
  }
}

run "data_of_dev" {
  module {
    source = "./environments/dev/data"
  }

  assert {
    condition     = output.bucket == "cloze-dev-123456789012"
    error_message = "The bucket is not the one that the platform of dev looks for."
  }
}

run "data_of_prod" {
  module {
    source = "./environments/prod/data"
  }

  assert {
    condition     = output.bucket == "cloze-prod-123456789012"
    error_message = "The bucket is not the one that the platform of prod looks for."
  }
}

run "state" {
  module {
    source = "./bootstrap"
  }

  assert {
    condition     = strcontains(output.backend, "cloze-state-123456789012")
    error_message = "The state's bucket is not named by its account."
  }
}
