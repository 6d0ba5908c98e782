"""Other datasets' layouts, converted into EchoPlan's raw format: CAMUS, EchoNet-Dynamic, and any folder with a CSV."""
