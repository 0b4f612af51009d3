output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Private subnets, in the order of the zones."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
}

output "placement_group" {
  description = "Name of the placement group; null without one."
  value       = one(aws_placement_group.this[*].name)
}

output "efa_security_group_id" {
  description = "Security group of machines with EFA; null without it."
  value       = one(aws_security_group.efa[*].id)
}
