variable "name" {
  description = "Name of everything that is made here."
  type        = string
  default     = "switchyard"
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "subnet_id" {
  description = "Subnet of the instance. It needs a way out (a NAT or an internet gateway) to fetch weights."
  type        = string
}

variable "public_ip" {
  description = "Whether the instance gets a public address. Needed for the way out in a subnet without a NAT."
  type        = bool
  default     = false
}

variable "instance_type" {
  description = "Instance with one NVIDIA GPU. The workstation profile wants 16 GB of GPU memory or more."
  type        = string
  default     = "g6.2xlarge"
}

variable "image" {
  description = "The container image, built from the Dockerfile and pushed to a registry the instance can pull from."
  type        = string
}

variable "settings" {
  description = "Settings as variables, say { SWITCHYARD_PROFILE = \"workstation\" }. No secrets: they end in the state."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.settings : can(regex("^[A-Z][A-Z0-9_]*$", name)) && !can(regex("\n", value))])
    error_message = "Names are like SWITCHYARD_PROFILE; values are one line."
  }
}

variable "hf_token_parameter" {
  description = "Name of an SSM SecureString with a hub token, for gated weights. Empty: none."
  type        = string
  default     = ""
}

variable "allowed_cidrs" {
  description = "Addresses that may ask. Empty: none but through Session Manager. The port speaks plain HTTP."
  type        = list(string)
  default     = []
}

variable "models_volume_gb" {
  description = "Size of the volume for weights and their quantized copies."
  type        = number
  default     = 200

  validation {
    condition     = var.models_volume_gb >= 60
    error_message = "The workstation profile's weights alone take 55 GB."
  }
}
