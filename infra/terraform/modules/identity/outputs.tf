output "role_arns" {
  description = "ARN of each workload's role."
  value       = { for workload, role in aws_iam_role.workload : workload => role.arn }
}

output "service_accounts" {
  description = "Service account of each add-on that calls AWS."
  value       = { for addon, account in local.addon_accounts : addon => account.name }
}

output "policies" {
  description = "The policy documents, as JSON, by workload."
  value       = { for workload, policy in aws_iam_role_policy.workload : workload => policy.policy }
}
