variable "name" {
  description = "Name of the environment: the repositories are NAME/REPOSITORY."
  type        = string
}

variable "repositories" {
  description = "Images: Cloze's own, and copies of those of others where the nodes have no way to the internet."
  type        = set(string)
  default     = ["cloze"]
}

variable "kept_images" {
  description = "Images kept in each repository; older ones are deleted. A CUDA image is several GB, at 0.10 dollars a GB and month."
  type        = number
  default     = 20

  validation {
    condition     = var.kept_images >= 5
    error_message = "kept_images: 5 at least: jobs that wait or are repeated pull the image again."
  }
}
