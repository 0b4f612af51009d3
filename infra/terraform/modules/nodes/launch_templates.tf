# What all machines share: encrypted disks, no instance metadata for pods, tags by which costs and leftovers are found.

locals {
  metadata = { tokens = "required", hops = 1 } # IMDSv2; a pod is one hop further away than the node
}

resource "aws_launch_template" "system" {
  name                   = "${var.cluster_name}-system"
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvdb" # Bottlerocket's disk for images and pods; /dev/xvda is the system's, read-only
    ebs {
      volume_type           = "gp3"
      volume_size           = 50
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = local.metadata.tokens
    http_put_response_hop_limit = local.metadata.hops
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.cluster_name}-system" })
    }
  }
}

resource "aws_launch_template" "pool" {
  for_each = var.pools

  name                   = "${var.cluster_name}-${each.key}"
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvdb"
    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.disk_gb
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = local.metadata.tokens
    http_put_response_hop_limit = local.metadata.hops
  }

  # One interface for each network card. The first also carries IP.
  dynamic "network_interfaces" {
    for_each = range(each.value.efa_interfaces)

    content {
      network_card_index    = network_interfaces.value
      device_index          = network_interfaces.value == 0 ? 0 : 1
      interface_type        = "efa"
      security_groups       = var.efa_security_group_ids
      delete_on_termination = true
    }
  }

  dynamic "placement" {
    for_each = each.value.placement_group ? [var.placement_group] : []

    content {
      group_name = placement.value
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.cluster_name}-${each.key}" })
    }
  }
}
