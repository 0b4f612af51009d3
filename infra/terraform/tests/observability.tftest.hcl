mock_provider "aws" {
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:mock" }
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

run "observability" {
  module {
    source = "./modules/observability"
  }
  variables {
    name            = "cloze-test"
    emails          = ["team@example.org"]
    monthly_dollars = 500
    gpu_hours_a_day = 48
    gpu_groups = {
      gpu-on-demand = { autoscaling_group = "eks-gpu-on-demand-1", gpus = 4 }
      gpu-spot      = { autoscaling_group = "eks-gpu-spot-1", gpus = 4 }
    }
  }

  assert {
    condition     = aws_budgets_budget.account.time_unit == "MONTHLY" && aws_budgets_budget.account.limit_amount == "500"
    error_message = "The budget is not the one that was asked for."
  }
  assert {
    condition     = toset([for one in aws_budgets_budget.account.notification : "${one.notification_type} ${one.threshold}"]) == toset(["ACTUAL 50", "ACTUAL 80", "ACTUAL 100", "FORECASTED 100"])
    error_message = "The budget does not warn before it is spent."
  }
  assert {
    condition     = alltrue([for one in aws_budgets_budget.account.notification : one.subscriber_sns_topic_arns == toset([aws_sns_topic.alarms.arn])])
    error_message = "Nobody is told of the budget."
  }
  assert {
    condition     = one([for query in aws_cloudwatch_metric_alarm.gpu_hours[0].metric_query : query.expression if query.return_data == true]) == "24 * (4 * FILL(m0, 0) + 4 * FILL(m1, 0))"
    error_message = "GPU-hours are not machines x hours x GPUs, on spot and on demand."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.gpu_hours[0].threshold == 48 && aws_cloudwatch_metric_alarm.gpu_hours[0].alarm_actions == toset([aws_sns_topic.alarms.arn])
    error_message = "Nobody is told of GPUs that are forgotten."
  }
  assert {
    condition = aws_cloudwatch_metric_alarm.gpu_hours[0].comparison_operator == "GreaterThanThreshold" && alltrue(flatten([
    for query in aws_cloudwatch_metric_alarm.gpu_hours[0].metric_query : [for metric in query.metric : metric.period == 86400 && metric.stat == "Average"]]))
    error_message = "The alarm does not compare the average of a day."
  }
  assert {
    condition = aws_kms_key.alarms.enable_key_rotation && aws_kms_key.alarms.deletion_window_in_days == 7 && alltrue([for statement in jsondecode(aws_kms_key.alarms.policy).Statement :
    try(statement.Principal.AWS, "") == "arn:aws:iam::123456789012:root" || try(statement.Condition.StringEquals["aws:SourceAccount"], "") == "123456789012"])
    error_message = "The key does not rotate, lingers, or is open to other accounts."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_sns_topic_policy.alarms.policy).Statement : statement.Action == "sns:Publish" && keys(statement.Principal) == ["Service"]])
    error_message = "Others than AWS's services send alarms, or do more than send."
  }
  assert {
    condition     = aws_sns_topic_subscription.email["team@example.org"].topic_arn == aws_sns_topic.alarms.arn && aws_sns_topic.alarms.kms_master_key_id == aws_kms_key.alarms.arn
    error_message = "Alarms do not arrive, or are not encrypted."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_sns_topic_policy.alarms.policy).Statement : statement.Condition.StringEquals["aws:SourceAccount"] == "123456789012"])
    error_message = "Other accounts can send alarms."
  }
}

run "observability_refuses_alarms_that_nobody_gets" {
  command = plan
  module {
    source = "./modules/observability"
  }
  variables {
    name            = "cloze-test"
    emails          = []
    monthly_dollars = 500
    gpu_hours_a_day = 48
    gpu_groups      = {}
  }
  expect_failures = [var.emails]
}
