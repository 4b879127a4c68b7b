"""What every room uses: configuration, files, progress, contact sheets, S3."""
