# One instance with one GPU that runs the container, its weights on a volume of their own that outlives it.

data "aws_subnet" "this" {
  id = var.subnet_id
}

data "aws_partition" "this" {}

data "aws_caller_identity" "this" {}

# Ubuntu with NVIDIA's driver, Docker and the NVIDIA container toolkit, kept by AWS.
data "aws_ssm_parameter" "ami" {
  name = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
}

resource "aws_security_group" "this" {
  name_prefix = "${var.name}-"
  description = "Switchyard: its port for those who may ask, everything outwards"
  vpc_id      = data.aws_subnet.this.vpc_id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "http" {
  for_each = toset(var.allowed_cidrs)

  security_group_id = aws_security_group.this.id
  description       = "Switchyard's HTTP"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 5000
  to_port           = 5000
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.this.id
  description       = "Weights, images, Session Manager"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_iam_role" "this" {
  name_prefix = "${var.name}-"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = toset(["AmazonSSMManagedInstanceCore", "AmazonEC2ContainerRegistryReadOnly"])

  role       = aws_iam_role.this.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/${each.value}"
}

resource "aws_iam_role_policy" "token" {
  count = var.hf_token_parameter == "" ? 0 : 1

  name_prefix = "token-"
  role        = aws_iam_role.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect = "Allow"
      Action = "ssm:GetParameter"
      Resource = join(":", [
        "arn", data.aws_partition.this.partition, "ssm", var.region, data.aws_caller_identity.this.account_id,
        "parameter/${trimprefix(var.hf_token_parameter, "/")}",
      ])
    }]
  })
}

resource "aws_iam_instance_profile" "this" {
  name_prefix = "${var.name}-"
  role        = aws_iam_role.this.name
}

resource "aws_ebs_volume" "models" {
  availability_zone = data.aws_subnet.this.availability_zone
  size              = var.models_volume_gb
  type              = "gp3"
  throughput        = 500
  iops              = 4000
  encrypted         = true

  tags = { Name = "${var.name}-models" }
}

resource "aws_instance" "this" {
  ami                         = data.aws_ssm_parameter.ami.insecure_value
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_id
  associate_public_ip_address = var.public_ip
  vpc_security_group_ids      = [aws_security_group.this.id]
  iam_instance_profile        = aws_iam_instance_profile.this.name
  user_data_replace_on_change = true

  user_data = templatefile("${path.module}/user_data.sh.tftpl", {
    image              = var.image
    region             = var.region
    volume_id          = aws_ebs_volume.models.id
    settings           = join("\n", [for name, value in var.settings : "${name}=${value}"])
    hf_token_parameter = var.hf_token_parameter
    publish            = length(var.allowed_cidrs) == 0 ? "127.0.0.1:5000:5000" : "5000:5000"
  })

  root_block_device {
    volume_type = "gp3"
    volume_size = 120
    encrypted   = true
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # containers do not reach the instance's credentials
  }

  tags = { Name = var.name }

  lifecycle {
    ignore_changes = [ami] # a newer image of the system is taken when the instance is made anew
  }
}

resource "aws_volume_attachment" "models" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.models.id
  instance_id = aws_instance.this.id

  stop_instance_before_detaching = true
}
