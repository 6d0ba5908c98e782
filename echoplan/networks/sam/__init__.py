"""SAM (Kirillov et al., ICCV 2023) and MedSAM (Ma et al., Nature Communications 2024), told where to look by boxes."""
