mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:mock" }
  }
}

variables {
  name        = "cloze-test"
  zones       = ["us-east-1a", "us-east-1b"]
  nat_gateway = true
}

run "network" {
  module {
    source = "./modules/network"
  }

  assert {
    condition     = length(distinct([for subnet in aws_subnet.private : subnet.availability_zone])) == 2
    error_message = "The private subnets are not in two zones, which EKS requires."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.public : !subnet.map_public_ip_on_launch])
    error_message = "A subnet gives machines public addresses."
  }
  assert {
    condition     = length(distinct(concat([for s in aws_subnet.private : s.cidr_block], [for s in aws_subnet.public : s.cidr_block]))) == 4
    error_message = "Subnets share addresses."
  }
  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && contains(aws_vpc_endpoint.s3.route_table_ids, aws_route_table.private.id)
    error_message = "S3 is not reached through the gateway endpoint, so that each GB would cost NAT's price."
  }
  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr"]) && alltrue([for e in aws_vpc_endpoint.interface : e.private_dns_enabled])
    error_message = "Images are not pulled through ECR's endpoints."
  }
  assert {
    condition     = [for rule in [aws_vpc_security_group_ingress_rule.endpoints] : [rule.cidr_ipv4, rule.ip_protocol, rule.from_port, rule.to_port]] == [["10.64.0.0/16", "tcp", 443, 443]]
    error_message = "The endpoints are open to more than HTTPS from the VPC."
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && aws_route.nat[0].route_table_id == aws_route_table.private.id && aws_route.nat[0].nat_gateway_id == aws_nat_gateway.this[0].id
    error_message = "With nat_gateway there is not exactly one, which the private subnets use."
  }
  assert {
    condition = aws_nat_gateway.this[0].subnet_id == aws_subnet.public["us-east-1a"].id && alltrue([for endpoint in aws_vpc_endpoint.interface :
    endpoint.subnet_ids == toset([aws_subnet.private["us-east-1a"].id])])
    error_message = "NAT or an endpoint is not in the first zone alone, where the machines of jobs are: traffic between zones and a second address cost."
  }
  assert {
    condition     = aws_vpc.this.enable_dns_hostnames && aws_vpc.this.enable_dns_support
    error_message = "The private names of the interface endpoints do not resolve."
  }
  assert {
    condition     = length(coalesce(aws_default_security_group.closed.ingress, [])) == 0 && length(coalesce(aws_default_security_group.closed.egress, [])) == 0
    error_message = "The default security group allows traffic."
  }
  assert {
    condition     = aws_flow_log.rejected.traffic_type == "REJECT" && aws_cloudwatch_log_group.flow.retention_in_days == 30
    error_message = "Rejected connections are not logged, or logged without an end."
  }
  assert {
    condition     = output.placement_group == null && output.efa_security_group_id == null
    error_message = "A placement group or EFA's security group exists though nobody asked for it."
  }
}

run "network_without_internet_with_efa" {
  module {
    source = "./modules/network"
  }
  variables {
    nat_gateway         = false
    interface_endpoints = ["autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "sts"]
    placement_group     = true
    efa                 = true
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 0 && length(aws_route.nat) == 0 && length(aws_eip.nat) == 0
    error_message = "Without nat_gateway there is one, or an address that costs."
  }
  assert {
    condition     = aws_placement_group.this[0].strategy == "cluster"
    error_message = "The placement group does not bring machines close together."
  }
  assert {
    condition = alltrue([for rule in [aws_vpc_security_group_ingress_rule.efa[0], aws_vpc_security_group_egress_rule.efa[0]] :
    rule.referenced_security_group_id == aws_security_group.efa[0].id && rule.security_group_id == aws_security_group.efa[0].id && rule.ip_protocol == "-1"])
    error_message = "EFA needs any traffic of the group to itself, in both directions, and no other."
  }
}

run "network_refuses_nodes_that_cannot_join" {
  command = plan
  module {
    source = "./modules/network"
  }
  variables {
    nat_gateway = false
  }
  expect_failures = [var.interface_endpoints]
}

run "network_refuses_zones_of_two_regions" {
  command = plan
  module {
    source = "./modules/network"
  }
  variables {
    zones = ["us-east-1a", "us-east-2b"]
  }
  expect_failures = [var.zones]
}
