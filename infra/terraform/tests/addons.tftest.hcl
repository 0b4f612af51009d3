mock_provider "aws" {
  mock_data "aws_eks_addon_version" {
    defaults = { version = "v1.2.3-eksbuild.1" }
  }
}

run "addons" {
  module {
    source = "./modules/addons"
  }
  variables {
    cluster_name       = "cloze-test"
    kubernetes_version = "1.35"
    addons = {
      coredns = {}
      vpc-cni = {
        configuration   = "{\"enableNetworkPolicy\":\"true\"}"
        service_account = "aws-node"
        role_arn        = "arn:aws:iam::123456789012:role/cni"
      }
    }
  }

  assert {
    condition     = alltrue([for name, addon in aws_eks_addon.this : addon.addon_version == data.aws_eks_addon_version.this[name].version])
    error_message = "An add-on has not the version for this Kubernetes."
  }
  assert {
    condition     = one(aws_eks_addon.this["vpc-cni"].pod_identity_association).service_account == "aws-node" && length(aws_eks_addon.this["coredns"].pod_identity_association) == 0
    error_message = "An add-on does not call AWS by a role of its own."
  }
}
