"""What RL optimises, a file each: advantages of a group's rewards, the loss of a token, what divides the sum."""
