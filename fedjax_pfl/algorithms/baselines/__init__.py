"""What every federated method is compared with: no federation, no privacy, and fine-tuning afterwards."""
