output "instance_id" {
  description = "The instance."
  value       = aws_instance.this.id
}

output "address" {
  description = "Where to ask, for those in allowed_cidrs."
  value       = "http://${var.public_ip ? aws_instance.this.public_ip : aws_instance.this.private_ip}:5000"
}

output "tunnel" {
  description = "Opens port 5000 of the instance on your machine, without any open port there."
  value = join(" ", [
    "aws ssm start-session --region ${var.region} --target ${aws_instance.this.id}",
    "--document-name AWS-StartPortForwardingSession --parameters portNumber=5000,localPortNumber=5000",
  ])
}

output "models_volume_id" {
  description = "The volume with the weights."
  value       = aws_ebs_volume.models.id
}
