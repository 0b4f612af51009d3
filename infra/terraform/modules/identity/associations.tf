# Add-ons bring their own association (module addons).

resource "aws_eks_pod_identity_association" "workload" {
  for_each = var.service_accounts

  cluster_name    = var.cluster_name
  namespace       = each.value.namespace
  service_account = each.value.name
  role_arn        = aws_iam_role.workload[each.key].arn
}
