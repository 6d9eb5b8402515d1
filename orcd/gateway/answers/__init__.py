"""What is generated: jobs, answered whole or as streams that go on from any place."""
