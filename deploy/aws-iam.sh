#!/bin/sh
# deploy/aws-iam.sh BUCKET: what the machines of cluster.yaml may do on AWS. Run it once for each account and bucket.
#   sweeper-head     starts and ends machines, hands workers their role, reads and writes the bucket
#   sweeper-worker   reads and writes the bucket
# Needs Amazon's command `aws` with the right to create roles, and the bucket (`aws s3 mb s3://BUCKET`).
set -eu
bucket=${1:?usage: deploy/aws-iam.sh BUCKET}
account=$(aws sts get-caller-identity --query Account --output text)

trust='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
results='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": "arn:aws:s3:::'$bucket'"},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
   "Resource": "arn:aws:s3:::'$bucket'/*"}]}'
pass='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'$account':role/sweeper-worker"},
  {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"}]}'

for name in sweeper-head sweeper-worker; do
  if ! aws iam get-role --role-name "$name" > /dev/null 2>&1; then
    aws iam create-role --role-name "$name" --assume-role-policy-document "$trust" > /dev/null
  fi
  if ! aws iam get-instance-profile --instance-profile-name "$name" > /dev/null 2>&1; then
    aws iam create-instance-profile --instance-profile-name "$name" > /dev/null
  fi
  if ! aws iam get-instance-profile --instance-profile-name "$name" --output text | grep -q ":role/$name"; then
    aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
  fi
  aws iam put-role-policy --role-name "$name" --policy-name "sweeper-$bucket" --policy-document "$results"
done
aws iam attach-role-policy --role-name sweeper-head --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
aws iam put-role-policy --role-name sweeper-head --policy-name sweeper-workers --policy-document "$pass"
echo "sweeper-head and sweeper-worker may use s3://$bucket"
