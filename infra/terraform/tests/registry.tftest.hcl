mock_provider "aws" {}

run "registry" {
  module {
    source = "./modules/registry"
  }
  variables {
    name = "cloze-test"
  }

  assert {
    condition     = alltrue([for repository in aws_ecr_repository.this : repository.image_tag_mutability == "IMMUTABLE"])
    error_message = "A tag can change its meaning while jobs use it."
  }
  assert {
    condition     = alltrue([for repository in aws_ecr_repository.this : repository.image_scanning_configuration[0].scan_on_push])
    error_message = "Images are not scanned."
  }
  assert {
    condition     = aws_ecr_repository.this["cloze"].name == "cloze-test/cloze"
    error_message = "The repository of an environment has not its name as a prefix."
  }
  assert {
    condition     = jsondecode(aws_ecr_lifecycle_policy.this["cloze"].policy).rules[*].selection == [{ tagStatus = "any", countType = "imageCountMoreThan", countNumber = 20 }]
    error_message = "Images are deleted by age, or too early: a project that rests would lose all, a job that waits its own."
  }
}
