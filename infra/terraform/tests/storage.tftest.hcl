mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::cloze-test" }
  }
}

variables {
  bucket = "cloze-test-123456789012"
}

run "storage" {
  module {
    source = "./modules/storage"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "The bucket keeps no versions: a deleted artifact cannot be restored."
  }
  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "The bucket is not encrypted with SSE-S3, whose ETags are digests."
  }
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "The bucket can be made public."
  }
  assert {
    condition     = aws_s3_bucket_ownership_controls.this.rule[0].object_ownership == "BucketOwnerEnforced"
    error_message = "Access lists decide beside policies."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement : statement.Effect == "Deny"])
    error_message = "The bucket's policy allows something: access is IAM's alone."
  }
  assert {
    condition = anytrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
    try(statement.Condition.Bool["aws:SecureTransport"], "") == "false" && statement.Action == "s3:*" && statement.Principal == "*" && length(statement.Resource) == 2])
    error_message = "The bucket can be reached without TLS."
  }
  assert {
    condition = anytrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
    try(statement.Condition.NumericLessThan["s3:TlsVersion"], "") == "1.2" && statement.Action == "s3:*" && statement.Principal == "*" && length(statement.Resource) == 2])
    error_message = "The bucket can be reached by TLS 1.1."
  }
  assert {
    condition     = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.status == "Enabled"])
    error_message = "A lifecycle rule is off: unfinished uploads or old versions cost for ever."
  }
  assert {
    condition = alltrue(flatten([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : [for expiration in rule.expiration :
    coalesce(expiration.days, 0) == 0 && expiration.date == null]]))
    error_message = "A lifecycle rule deletes live artifacts."
  }
  assert {
    condition     = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : length(rule.transition) == 0])
    error_message = "A lifecycle rule moves live artifacts to storage that is slow or costs by the GB read."
  }
  assert {
    condition     = anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : try(rule.abort_incomplete_multipart_upload[0].days_after_initiation, 0) == 7])
    error_message = "Unfinished uploads stay, and cost."
  }
  assert {
    condition     = anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : try(rule.noncurrent_version_expiration[0].noncurrent_days, 0) == 30])
    error_message = "Old versions stay, and cost."
  }
  assert {
    condition     = aws_s3_bucket.this.force_destroy == false
    error_message = "terraform destroy would delete the data."
  }
}

run "storage_refuses_to_keep_no_old_versions" {
  command = plan
  module {
    source = "./modules/storage"
  }
  variables {
    noncurrent_days = 0
  }
  expect_failures = [var.noncurrent_days]
}

run "storage_refuses_to_abort_uploads_of_running_jobs" {
  command = plan
  module {
    source = "./modules/storage"
  }
  variables {
    upload_days = 1
  }
  expect_failures = [var.upload_days]
}
