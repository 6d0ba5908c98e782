"""Foundation models as they are published, untrained on echocardiography."""
