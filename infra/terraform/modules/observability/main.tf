# What is spent, and who is told: a budget in dollars, which AWS knows hours later, and GPU-hours, which are known at once.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

resource "aws_kms_key" "alarms" {
  description             = "Alarms of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Account"
        Effect    = "Allow"
        Principal = { AWS = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root" }
        Action    = "kms:*"
        Resource  = "*"
      },
      {
        Sid       = "Publish"
        Effect    = "Allow"
        Principal = { Service = ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"] }
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
      },
    ]
  })
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = aws_kms_key.alarms.arn
}

resource "aws_sns_topic_policy" "alarms" {
  arn = aws_sns_topic.alarms.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Publish"
      Effect    = "Allow"
      Principal = { Service = ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"] }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alarms.arn
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    }]
  })
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.emails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.key
}

# Of the whole account: traffic and requests carry no tags, and a tag counts only after the payer's account has activated it.
resource "aws_budgets_budget" "account" {
  name         = var.name
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_unit   = "USD"
  limit_amount = tostring(var.monthly_dollars)

  dynamic "notification" {
    for_each = [["ACTUAL", 50], ["ACTUAL", 80], ["ACTUAL", 100], ["FORECASTED", 100]]

    content {
      notification_type         = notification.value[0]
      threshold                 = notification.value[1]
      threshold_type            = "PERCENTAGE"
      comparison_operator       = "GREATER_THAN"
      subscriber_sns_topic_arns = [aws_sns_topic.alarms.arn]
    }
  }

  depends_on = [aws_sns_topic_policy.alarms]
}

locals {
  groups = { for place, name in sort(keys(var.gpu_groups)) : "m${place}" => var.gpu_groups[name] }
}

# The average number of machines over a day, times 24 hours, times the GPUs of each.
resource "aws_cloudwatch_metric_alarm" "gpu_hours" {
  count = length(local.groups) > 0 ? 1 : 0

  alarm_name          = "${var.name}-gpu-hours"
  alarm_description   = "More than ${var.gpu_hours_a_day} GPU-hours in 24 hours: cloze job list, kubectl get nodes -l cloze/pool=gpu"
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.gpu_hours_a_day
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]

  metric_query {
    id          = "gpu_hours"
    label       = "GPU-hours"
    expression  = "24 * (${join(" + ", [for id, group in local.groups : "${group.gpus} * FILL(${id}, 0)"])})"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = local.groups

    content {
      id = metric_query.key

      metric {
        namespace   = "AWS/AutoScaling"
        metric_name = "GroupInServiceInstances"
        dimensions  = { AutoScalingGroupName = metric_query.value.autoscaling_group }
        stat        = "Average"
        period      = 86400
      }
    }
  }
}
