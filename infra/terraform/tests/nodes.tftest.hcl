mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_eks_node_group" {
    defaults = { resources = [{ autoscaling_groups = [{ name = "eks-mock" }], remote_access_security_group_id = "" }] }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  cluster_name       = "cloze-test"
  kubernetes_version = "1.35"
  subnet_id          = "subnet-a"
  tags               = { project = "cloze" }
  system             = { instance_type = "m7i.large", min_nodes = 2, max_nodes = 3, subnet_ids = ["subnet-a", "subnet-b"] }
  pools = {
    head = { instance_types = ["m7i.2xlarge"], max_nodes = 2 }
    cpu  = { instance_types = ["c7i.8xlarge"], max_nodes = 8, spot = true }
    gpu  = { instance_types = ["g6.12xlarge"], gpus = 4, gpu = "L4", max_nodes = 2, spot = true, disk_gb = 300 }
  }
}

run "nodes" {
  module {
    source = "./modules/nodes"
  }

  assert {
    condition     = toset(keys(aws_eks_node_group.pool)) == toset(["cpu-on-demand", "cpu-spot", "gpu-on-demand", "gpu-spot", "head-on-demand"])
    error_message = "A pool has not its kinds: spot with a fallback on demand, or on demand alone."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : group.scaling_config[0].min_size == 0 && group.scaling_config[0].desired_size == 0])
    error_message = "A pool keeps machines though no job runs."
  }
  assert {
    condition     = { for name, group in aws_eks_node_group.pool : name => group.scaling_config[0].max_size } == { cpu-on-demand = 8, cpu-spot = 8, gpu-on-demand = 2, gpu-spot = 2, head-on-demand = 2 }
    error_message = "A pool can have other than its max_nodes machines."
  }
  assert {
    condition = alltrue([for group in concat(values(aws_eks_node_group.pool), [aws_eks_node_group.system]) : length(group.remote_access) == 0]) && alltrue([
    for template in concat(values(aws_launch_template.pool), [aws_launch_template.system]) : template.key_name == null])
    error_message = "Machines can be entered by SSH."
  }
  assert {
    condition     = aws_eks_node_group.system.scaling_config[0].min_size == 2 && aws_eks_node_group.system.capacity_type == "ON_DEMAND" && length(aws_eks_node_group.system.taint) == 0
    error_message = "The system pool is not there always, on demand, for everything."
  }
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : group.capacity_type == (endswith(name, "-spot") ? "SPOT" : "ON_DEMAND") && group.labels["cloze/capacity-type"] == (endswith(name, "-spot") ? "spot" : "on-demand")])
    error_message = "A machine's label does not say whether it is spot."
  }
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : group.labels["cloze/pool"] == split("-", name)[0]])
    error_message = "A machine has not the label that the RayJobs select."
  }
  assert {
    condition = alltrue([for name in ["gpu-spot", "gpu-on-demand"] : one([for taint in aws_eks_node_group.pool[name].taint :
    "${taint.key}=${taint.value}:${taint.effect}"]) == "nvidia.com/gpu=present:NO_SCHEDULE"])
    error_message = "Pods without GPUs can occupy machines with GPUs."
  }
  assert {
    condition = alltrue([for name in ["cpu-spot", "cpu-on-demand", "head-on-demand"] : one([for taint in aws_eks_node_group.pool[name].taint :
    "${taint.key}=${taint.value}:${taint.effect}"]) == "cloze/pool=${split("-", name)[0]}:NO_SCHEDULE"])
    error_message = "Pods of others can occupy a pool's machines, which then never end."
  }
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : group.ami_type == (startswith(name, "gpu-") ? "BOTTLEROCKET_x86_64_NVIDIA" : "BOTTLEROCKET_x86_64")])
    error_message = "Machines with GPUs have not the image with driver and device plugin."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : group.subnet_ids == toset(["subnet-a"])])
    error_message = "A pool is in two zones, whose traffic costs."
  }
  assert {
    condition     = alltrue([for group in concat(values(aws_eks_node_group.pool), [aws_eks_node_group.system]) : group.node_repair_config[0].enabled && group.update_config[0].max_unavailable == 1 && !group.force_update_version])
    error_message = "A failed machine is not replaced, or an update does not wait for disruption budgets."
  }
  assert {
    condition     = alltrue([for template in concat(values(aws_launch_template.pool), [aws_launch_template.system]) : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "Pods can take the node's credentials from the instance metadata."
  }
  assert {
    condition = alltrue([for template in concat(values(aws_launch_template.pool), [aws_launch_template.system]) :
    tobool(one(template.block_device_mappings).ebs[0].encrypted) && tobool(one(template.block_device_mappings).ebs[0].delete_on_termination)])
    error_message = "A disk is not encrypted, or stays when its machine ends."
  }
  assert {
    condition     = alltrue([for template in concat(values(aws_launch_template.pool), [aws_launch_template.system]) : one(template.block_device_mappings).ebs[0].volume_type == "gp3"])
    error_message = "A disk costs more than gp3."
  }
  assert {
    condition     = one(aws_launch_template.pool["gpu"].block_device_mappings).ebs[0].volume_size == 300
    error_message = "A pool has not the disk that it asks for."
  }
  assert {
    condition = alltrue([for template in concat(values(aws_launch_template.pool), [aws_launch_template.system]) :
    toset([for one in template.tag_specifications : one.resource_type if one.tags["project"] == "cloze"]) == toset(["instance", "volume", "network-interface"])])
    error_message = "Machines and disks have no tags: what is left cannot be found."
  }
  assert {
    condition     = toset(keys(aws_iam_role_policy_attachment.node)) == toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])
    error_message = "A node may do more than join and pull images."
  }
  assert {
    condition     = try({ for tag in aws_autoscaling_group_tag.template : tag.tag[0].key => tag.tag[0].value... }["k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu"], []) == ["4", "4"]
    error_message = "The autoscaler does not know that machines which do not exist yet have GPUs."
  }
  assert {
    condition     = aws_autoscaling_group_tag.template["gpu-spot/taint"].tag[0].key == "k8s.io/cluster-autoscaler/node-template/taint/nvidia.com/gpu" && aws_autoscaling_group_tag.template["gpu-spot/taint"].tag[0].value == "present:NoSchedule"
    error_message = "The autoscaler does not know the taint of machines that do not exist yet."
  }
  assert {
    condition     = aws_autoscaling_group_tag.template["cpu-spot/label/cloze/pool"].tag[0].key == "k8s.io/cluster-autoscaler/node-template/label/cloze/pool" && aws_autoscaling_group_tag.template["cpu-spot/label/cloze/pool"].tag[0].value == "cpu"
    error_message = "The autoscaler does not know the labels of machines that do not exist yet."
  }
  assert {
    condition = alltrue([for name, group in aws_eks_node_group.pool : alltrue([for label, value in group.labels :
    try(aws_autoscaling_group_tag.template["${name}/label/${label}"].tag[0].value, "") == value])])
    error_message = "The autoscaler does not know each label of machines that do not exist yet."
  }
  assert {
    condition     = { for name, group in aws_eks_node_group.pool : name => lookup(group.labels, "k8s.amazonaws.com/accelerator", "none") } == { cpu-on-demand = "none", cpu-spot = "none", gpu-on-demand = "L4", gpu-spot = "L4", head-on-demand = "none" }
    error_message = "The autoscaler starts a second machine until the GPUs of the first appear."
  }
  assert {
    condition     = aws_eks_node_group.system.subnet_ids == toset(["subnet-a", "subnet-b"])
    error_message = "The system's machines are all lost with one zone."
  }
  assert {
    condition     = keys(output.gpu_groups) == ["gpu-on-demand", "gpu-spot"] && output.gpu_groups["gpu-spot"].gpus == 4
    error_message = "GPU-hours are not counted for all machines with GPUs."
  }
  assert {
    condition     = alltrue([for name in ["eks-gpu-spot-1a2b3c"] : length(regexall(output.autoscaler_priorities["20"][0], name)) == 1]) && length(regexall(output.autoscaler_priorities["20"][0], "eks-gpu-on-demand-1a2b3c")) == 0
    error_message = "The autoscaler does not prefer spot."
  }
}

run "a_system_of_one_machine" {
  module {
    source = "./modules/nodes"
  }
  variables {
    system = { instance_type = "m7i.large", min_nodes = 1, max_nodes = 2, subnet_ids = ["subnet-a", "subnet-b"] }
  }

  assert {
    condition     = aws_eks_node_group.system.subnet_ids == toset(["subnet-a"])
    error_message = "The only machine can come again in another zone than Dagster's volume."
  }
}

run "nodes_with_efa" {
  module {
    source = "./modules/nodes"
  }
  variables {
    placement_group        = "cloze-test"
    efa_security_group_ids = ["sg-efa", "sg-cluster"]
    pools                  = { gpu = { instance_types = ["p5.48xlarge"], gpus = 8, max_nodes = 2, efa_interfaces = 32, placement_group = true } }
  }

  assert {
    condition = length(aws_launch_template.pool["gpu"].network_interfaces) == 32 && alltrue([for one in aws_launch_template.pool["gpu"].network_interfaces :
    one.interface_type == "efa" && one.device_index == (one.network_card_index == 0 ? 0 : 1) && length(one.security_groups) == 2])
    error_message = "Not each network card has its EFA interface, in the two security groups."
  }
  assert {
    condition     = aws_launch_template.pool["gpu"].placement[0].group_name == "cloze-test"
    error_message = "Machines with EFA do not stand close together."
  }
}

run "nodes_refuse_efa_without_its_security_group" {
  command = plan
  module {
    source = "./modules/nodes"
  }
  variables {
    pools = { gpu = { instance_types = ["p5.48xlarge"], gpus = 8, max_nodes = 2, efa_interfaces = 32 } }
  }
  expect_failures = [var.pools]
}
